// iOS: name what is on a picture, in two ways. Add model.tflite to the app's
// bundle. Type-checked against stand-ins for the versions below; not run.

import MediaPipeTasksVision
import TensorFlowLite
import UIKit

// With MediaPipe Tasks, which reads the file's metadata: it resizes, hands over
// plain pixels (mean 0, deviation 1) and knows the class names.
// pod 'MediaPipeTasksVision', '~> 0.10'
final class TaskClassifier {
    private let classifier: ImageClassifier

    init() throws {
        let options = ImageClassifierOptions()
        options.baseOptions.modelAssetPath = Bundle.main.path(
            forResource: "model", ofType: "tflite")!
        options.maxResults = 5
        classifier = try ImageClassifier(options: options)
    }

    func classify(_ photo: UIImage) throws -> [(name: String, score: Float)] {
        // Otherwise the whole picture is stretched into a square.
        let side = min(photo.size.width, photo.size.height)
        let width = side / photo.size.width
        let height = side / photo.size.height
        let square = CGRect(
            x: (1 - width) / 2, y: (1 - height) / 2,
            width: width, height: height)
        let result = try classifier.classify(
            image: MPImage(uiImage: photo), regionOfInterest: square)
        return result.classificationResult.classifications[0].categories.map {
            ($0.categoryName ?? "\($0.index)", $0.score)
        }
    }
}

// With LiteRT alone, for a file whose input is float32 (not int8's bytes).
// pod 'TensorFlowLiteSwift', '~> 2.17'
final class PlainClassifier {
    private let interpreter: Interpreter
    private let side: Int

    init(threads: Int = 2) throws {
        let path = Bundle.main.path(forResource: "model", ofType: "tflite")!
        var options = Interpreter.Options()
        options.threadCount = threads
        interpreter = try Interpreter(modelPath: path, options: options)
        try interpreter.allocateTensors()
        side = try interpreter.input(at: 0).shape.dimensions[1]
    }

    /// Probabilities, in the order of labels.txt.
    func classify(_ photo: CGImage) throws -> [Float] {
        let square = min(photo.width, photo.height)
        let centre = photo.cropping(to: CGRect(
            x: (photo.width - square) / 2, y: (photo.height - square) / 2,
            width: square, height: square))!
        var bytes = [UInt8](repeating: 0, count: 4 * side * side)
        let context = CGContext(
            data: &bytes, width: side, height: side, bitsPerComponent: 8,
            bytesPerRow: 4 * side, space: CGColorSpaceCreateDeviceRGB(),
            bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue)!
        context.interpolationQuality = .high
        context.draw(centre, in: CGRect(x: 0, y: 0, width: side, height: side))
        let pixels = (0..<side * side).flatMap { i in
            (0..<3).map { Float32(bytes[4 * i + $0]) }
        }
        try interpreter.copy(
            pixels.withUnsafeBufferPointer { Data(buffer: $0) }, toInputAt: 0)
        try interpreter.invoke()
        return try interpreter.output(at: 0).data.withUnsafeBytes {
            Array($0.bindMemory(to: Float32.self))
        }
    }
}
