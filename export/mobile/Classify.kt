// Android: name what is on a picture, in two ways. Put model.tflite into
// src/main/assets. Compiled against stand-ins for the versions below; not run.

import android.content.Context
import android.graphics.Bitmap
import android.graphics.RectF
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel
import com.google.mediapipe.framework.image.BitmapImageBuilder
import com.google.mediapipe.tasks.core.BaseOptions
import com.google.mediapipe.tasks.vision.core.ImageProcessingOptions
import com.google.mediapipe.tasks.vision.imageclassifier.ImageClassifier

// With MediaPipe Tasks, which reads the file's metadata: it resizes, hands over
// plain pixels (mean 0, deviation 1) and knows the class names.
// implementation("com.google.mediapipe:tasks-vision:0.10.26")
class TaskClassifier(context: Context) : AutoCloseable {
    private val classifier = ImageClassifier.createFromOptions(
        context,
        ImageClassifier.ImageClassifierOptions.builder()
            .setBaseOptions(
                BaseOptions.builder().setModelAssetPath("model.tflite").build()
            )
            .setMaxResults(5)
            .build()
    )

    fun classify(bitmap: Bitmap): List<Pair<String, Float>> {
        // Otherwise the whole picture is stretched into a square.
        val side = minOf(bitmap.width, bitmap.height).toFloat()
        val x = side / bitmap.width / 2
        val y = side / bitmap.height / 2
        val square = ImageProcessingOptions.builder()
            .setRegionOfInterest(RectF(0.5f - x, 0.5f - y, 0.5f + x, 0.5f + y))
            .build()
        val image = BitmapImageBuilder(bitmap).build()
        val result = classifier.classify(image, square).classificationResult()
        return result.classifications()[0].categories()
            .map { it.categoryName() to it.score() }
    }

    override fun close() = classifier.close()
}

// With LiteRT alone, for a file whose input is float32 (not int8's bytes).
// implementation("com.google.ai.edge.litert:litert:2.1.0")
class PlainClassifier(context: Context, private val side: Int) : AutoCloseable {
    private val model = CompiledModel.create(
        context.assets,
        "model.tflite",
        CompiledModel.Options(Accelerator.CPU)
    )
    private val inputs = model.createInputBuffers()
    private val outputs = model.createOutputBuffers()

    /** Probabilities, in the order of labels.txt. */
    fun classify(bitmap: Bitmap): FloatArray {
        val square = minOf(bitmap.width, bitmap.height)
        val cropped = Bitmap.createBitmap(
            bitmap,
            (bitmap.width - square) / 2,
            (bitmap.height - square) / 2,
            square,
            square
        )
        val small = Bitmap.createScaledBitmap(cropped, side, side, true)
        val colours = IntArray(side * side)
        small.getPixels(colours, 0, side, 0, 0, side, side)
        val pixels = FloatArray(3 * colours.size)
        for ((i, colour) in colours.withIndex()) {
            pixels[3 * i] = (colour shr 16 and 255).toFloat()
            pixels[3 * i + 1] = (colour shr 8 and 255).toFloat()
            pixels[3 * i + 2] = (colour and 255).toFloat()
        }
        inputs[0].writeFloat(pixels)
        model.run(inputs, outputs)
        return outputs[0].readFloat()
    }

    override fun close() = model.close()
}
